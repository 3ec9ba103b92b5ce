"""Weights of PyTorch networks in ours."""


def numpy(tensor):
    return tensor.detach().numpy()


def copy_weights(theirs, ours):
    """Puts every array of the PyTorch network into its place of ours."""

    def norm(a, b):
        b.scale[...], b.bias[...] = numpy(a.weight), numpy(a.bias)
        b.mean[...], b.variance[...] = numpy(a.running_mean), numpy(a.running_var)

    def conv(a, b):
        b.kernel[...] = numpy(a.weight).transpose(2, 3, 1, 0)

    conv(theirs.stem, ours.stem)
    norm(theirs.stem_norm, ours.stem_norm)
    for a, b in zip(theirs.blocks, ours.blocks, strict=True):
        for i in range(len(a.convs)):
            conv(a.convs[i], b.convs[i])
            norm(a.norms[i], b.norms[i])
        assert (a.shortcut is None) == (b.shortcut is None)
        if a.shortcut is not None:
            conv(a.shortcut, b.shortcut)
            norm(a.shortcut_norm, b.shortcut_norm)
    ours.W[...] = numpy(theirs.classifier.weight)
    if theirs.classifier.bias is not None:
        ours.bias[...] = numpy(theirs.classifier.bias)
