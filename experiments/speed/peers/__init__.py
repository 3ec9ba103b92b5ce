"""Other libraries behind one interface each; all are optional."""
