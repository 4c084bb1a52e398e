"""The additions of `make docs` to MkDocs: generated pages, notebooks, equations and checks."""
