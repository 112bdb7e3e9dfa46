"""Text becomes token blocks, and the blocks become batches in an order that can be resumed.

``text_source`` locates a text, ``documents`` reads it, ``token_blocks`` tokenises it and keeps the
blocks on disk, and ``data_module`` orders the batches and hands them to Lightning.
"""
