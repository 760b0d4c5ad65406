"""The task `tools`: a request and typed functions in, one or several calls out, or none."""
