"""What PgBouncer understands: its files, its admin console, its parameters.

`quoting`, `fill`, `admin` and `show` use the standard library only, for the agent; `render` needs jinja2.
"""
