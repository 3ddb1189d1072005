"""The promotions mapper: Nacelle's checkout in, a promotion engine asked, the discounted checkout out."""

__version__ = "0.1.0"
