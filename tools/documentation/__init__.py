"""What `make docs` adds to MkDocs: generated pages, notebooks, equations and checks."""
