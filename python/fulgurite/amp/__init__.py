"""Loss scaling."""

from fulgurite.amp.loss_scaler import LossScaler

__all__ = ["LossScaler"]
