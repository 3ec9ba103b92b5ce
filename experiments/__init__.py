"""The paper's experiments, one file a figure, and the command line that runs them."""
