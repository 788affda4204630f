"""The KL weight over the epochs (Bowman et al. 2015)."""

from w2wpp.spaces.vae_options import VaeOptions

CYCLES = 4  # of the cyclical schedule


def kl_weight_at(options: VaeOptions, epoch: float) -> float:
    """The weight of the KL at a time in epochs, from 0.

    steps: 0 in the warm-up, then raised at the start of each of as many epochs, then constant (Bowman et al. 2015).
    ramp: 0 in the warm-up, then from `kl_start` in `ramp_epochs` equal steps up to the weight, as the seed's script has it.
    cyclical: in each of four cycles up from 0 for half of it, then constant (Fu et al. 2019).
    """
    if options.schedule == "cyclical":
        share = epoch * CYCLES / options.epochs % 1 / 0.5
    elif options.schedule == "ramp":
        since = int(epoch) - options.warmup_epochs
        if since < 0:
            return 0.0
        return options.kl_start + (options.kl_weight - options.kl_start) * min(1.0, since / max(1, options.ramp_epochs))
    else:
        share = (int(epoch) - options.warmup_epochs + 1) / max(1, options.warmup_epochs)
    return options.kl_weight * min(1.0, max(0.0, share))
