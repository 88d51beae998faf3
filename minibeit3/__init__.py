"""minibeit3: BEiT-3 ("Image as a Foreign Language", arXiv 2208.10442) as a lab."""

__version__ = "0.1.0"
