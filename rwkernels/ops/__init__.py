"""The operators under the public functions: schemas, fakes, autograd and vmap rules."""
