"""What every command needs: configuration, command line, checkpoints, processes, logs, profiling, drawing."""
