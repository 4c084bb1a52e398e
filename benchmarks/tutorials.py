"""Executes the tutorials in full and stores their outputs, without what differs by machine.

python benchmarks/tutorials.py             # all
python benchmarks/tutorials.py method      # docs/tutorials/method.ipynb
"""
