"""Networks only: encoders, and one whole training method a file. Nothing here knows of experiments,
data sets or files.

A method is a torch module. The training loop knows it by this contract, and by nothing else:

    encoder                    the only part that is measured and kept
    forward(*views) -> loss    a view has .pixels (B, C, H, W), normalized, and .visible, patch
                               indices (B, K) or None
    online_encoder             optional; the encoder that gradients train, if `encoder` may be its
                               slow copy
    parameter_groups()         optional; dicts with params and any of lr_scale, weight_decay,
                               constant_lr (else: one group of all parameters). A group without
                               weight_decay is split in two: weights; and biases and norms, which
                               have no decay, and no adaptation by LARS. One with it stays whole.
    before_step(progress, optimizer)
                               optional; after backward, before the optimizer steps: freezing,
                               schedules of its groups' weight_decay, which checkpoints do not
                               keep: it is set in every step; progress in [0, 1]
    after_step(progress)       optional; momentum networks, centres, temperatures
    is_mean_over_images        optional; True if the loss is the mean over images of a loss that
                               each image has alone, whatever the batch: then training.privacy is
                               allowed (models/private_loss.py). It runs forward under
                               torch.func.vmap, which forbids to write into new tensors in place
    pictures(views)            optional; {title: (n, C, H, W) pixels, normalized as the views are},
                               drawn as rows of pictures every training.pictures_every epochs

If several processes train together, forward sees one process's part of the batch, and the gradient
is the mean over the processes. A loss that is a mean over images needs nothing more. A loss that
compares images gathers the parts first, by models/gather.py.

A method encodes every view once, by calling the encoder that is trained: encoder(pixels, visible),
or encoder(pixels, visible, pooled=False) if it needs the tokens of a vision transformer. Views may
be joined to one batch, view by view. models/alignment_penalty.py, which wraps any method, sees the
representations by a hook.

All state of a method lives in parameters and buffers. Beside the module stands the schema of its
settings, a pydantic model: its fields are the keys of the config's `method:` section, and its
`arguments(training)` are those of the module. Adding a method is one file here, one train script
and one config.

An encoder maps normalized pixels to representations:

    encoder(pixels, visible=None) -> (B, D)              one representation an image
    encoder.tokens(pixels, visible=None) -> (B, T, D)    one a position, before pooling; of a vision
                                                         transformer (B, 1 + K, D), the class token
                                                         and the K visible patches
    encoder.dim                                          D
    encoder.layers(pixels, visible=None) -> {name: (B, T, D)}
                                                         what comes out of each layer, from input
                                                         to output, under the names that people
                                                         know; the last is that of `tokens`
    encoder.patch                                        of a vision transformer: height and width
                                                         of its patches

Measurements look at layers while they are computed, by models/layers.py. For that an encoder has

    encoder.find_layers(pixels, visible=None)            the Layers, in the same order
    encoder.pass_once(pixels, visible=None)              one pass through all layers, in one piece
    encoder.pool(output) -> (B, D)                       (B, T, D) of a layer, as tokens are pooled

Its settings stand beside it, a BaseEncoderSettings whose `make(channels, size)` makes it. Adding an
encoder is one file here and one line in encoders.py.

What does not fit together (a method and an encoder, or its views) is a ValueError, raised when the
method is made or first called. Its message is one line that names the setting. A method is called
once on blank views before training starts.
"""
