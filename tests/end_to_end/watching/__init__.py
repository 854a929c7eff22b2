"""One change stream, every way in and every way out, at nodes that run as their users run them."""
