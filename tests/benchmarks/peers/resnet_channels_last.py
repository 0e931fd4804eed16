"""As `resnet`, with PyTorch's faster layout of images."""

from tests.benchmarks.peers import resnet

PEER = "torchvision, channels_last"
UNIT = resnet.UNIT
BATCH = resnet.BATCH
PER_STEP = resnet.PER_STEP
ours = resnet.ours


def theirs(folder):
    return resnet.theirs(folder, "channels_last")
