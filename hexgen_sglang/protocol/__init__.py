"""Wire structs and header names: what crosses a socket, strict, bounded and versioned."""
