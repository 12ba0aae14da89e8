"""Models of transformers on fulgurite's operators: attention, experts, routers, scans, norms.

:func:`register` puts names into transformers' tables, for ``from_pretrained(...,
attn_implementation="fulgurite", experts_implementation="fulgurite")``. :func:`apply` leads a model
that exists, and the classes that know no names. transformers is imported when one of them is
called.
"""

from fulgurite.integrations._applied import Applied
from fulgurite.integrations.transformers.names import register
from fulgurite.integrations.transformers.replace import apply

__all__ = ["Applied", "apply", "register"]
