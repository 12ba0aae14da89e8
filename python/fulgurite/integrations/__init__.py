"""Models of other libraries on fulgurite's operators: transformers, timm, diffusers, and every
``scaled_dot_product_attention`` of a process.

Nothing of those libraries is imported before one of these modules' functions is called, and nothing
changes anywhere without a call.
"""
