"""The experiment and the measurement; one noun of the field, or of training, a file.

What people import from here is loaded when it is first used.
"""

from importlib import import_module

__version__ = "0.2.0"

_MODULES = {
    "Encoder": "memorization.encoder",
    "Scoring": "memorization.measuring.scores",
    "Split": "memorization.data.images",
    "ViewRecipe": "memorization.data.recipes",
    "alignment_loss": "memorization.alignment",
    "load_encoder": "memorization.checkpoint",
    "load_pair": "memorization.checkpoint",
    "memorization_score": "memorization.alignment",
    "open_run": "memorization.run",
    "score_images": "memorization.measuring.scores",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name):
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
