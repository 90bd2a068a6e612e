"""What every wing may use: settings, files, progress, tasks, intervals, options."""
