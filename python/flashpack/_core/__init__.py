"""What everything else uses: the native libraries, errors, progress, names, dtypes, paths, text."""
