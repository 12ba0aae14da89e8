"""Float64 references, by family: the dense, obvious computation, for results that can be believed.

They take the arguments of the operator of the same name and are differentiable by autograd.
"""
