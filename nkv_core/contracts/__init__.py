"""The contracts: hook specifications and the Protocols that plugins implement, side by side."""
