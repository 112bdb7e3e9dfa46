"""Text becomes token blocks, and the blocks an order: everything a run reads is made here.

``text_source`` says where a text lies, ``text_files`` and ``documents`` read it, ``tokenization``
cuts it into blocks, ``token_blocks`` keeps them in a cache, ``batch_order`` decides which rank sees
which block when, and ``data_module`` hands the batches to Lightning.
"""
