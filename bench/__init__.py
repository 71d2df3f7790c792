"""Figures, measured side by side in one run: `make bench`. Nothing here is a test: a goal that is missed is printed."""
