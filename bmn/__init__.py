"""Private code of BMN: what every wing stands on (errors, files, processes, options)."""
