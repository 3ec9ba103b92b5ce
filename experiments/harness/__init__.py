"""What every experiment shares: the command line, results and their pages."""
