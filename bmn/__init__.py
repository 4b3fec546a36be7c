"""The private code of BMN. All subpackages use the modules here: errors, files, the pool of processes, the options."""
__version__ = "1.1.0.dev0"
