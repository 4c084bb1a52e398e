"""What tests share: data, runs, exact solutions, faults."""
