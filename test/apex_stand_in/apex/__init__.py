"""A stand-in for apex, for tests: PYTHONPATH=test/apex_stand_in gives ``from apex import amp``."""
