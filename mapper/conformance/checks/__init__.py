"""The standard tests, by what they check. Each module has one class; `suite.Conformance` inherits from all of them."""
