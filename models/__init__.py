"""Networks only: encoders, and one whole training method a file. Nothing here knows of experiments,
data sets or files.

A method is a torch module that the training loop knows by this contract, and by nothing else:

    encoder                    the only part that is measured and kept
    forward(*views) -> loss    a view has .pixels (B, C, H, W), normalized, and .visible (B, K) patch indices or None
    parameter_groups()         optional; dicts with params and any of lr_scale, weight_decay, constant_lr (else: all parameters, biases
                               and norms without decay)
    before_step(progress)      optional; after backward, before the optimizer: freezing, schedules; progress in [0, 1]
    after_step(progress)       optional; momentum networks, centres, temperatures
    pictures(views)            optional; {title: (n, C, H, W) pixels, normalized as the views are}, drawn as rows of pictures every
                               training.pictures_every epochs

Where several processes train together, forward sees one process's part of the batch, and the
gradient is the mean over the processes: a loss that is a mean over images needs nothing more, one
that compares images puts the parts together by models/gather.py first.

All its state lives in parameters and buffers. Beside the module stands the schema of its settings,
a pydantic model whose fields are the keys of the config's `method:` section and whose `arguments()`
are those of the module. Adding a method is one file here, one train script and one config.

An encoder maps normalized pixels to representations:

    encoder(pixels, visible=None) -> (B, D)              one representation an image
    encoder.tokens(pixels, visible=None) -> (B, T, D)    one a position, before pooling; of a vision transformer (B, 1 + K, D), the class
                                                         token and the K visible patches
    encoder.dim                                          D
    encoder.patch                                        of a vision transformer: height and width of its patches

Whatever does not fit together (a method and an encoder, or its views) is a ValueError, raised when
the method is made or first called, whose message is one line that names the setting; it is called
once on blank views before training starts.
"""
