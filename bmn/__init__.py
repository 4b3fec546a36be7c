"""The private code of BMN. Every wing stands on the modules here: errors, files, the pool of processes, the options."""
__version__ = "1.1.0.dev0"
