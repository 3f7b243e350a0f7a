"""Studies that prove or explore the toolkit itself; the product does not need them."""
