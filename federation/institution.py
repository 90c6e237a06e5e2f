"""How much noise it takes to hide a whole bank, and why that is refused.

At the level of institutions the sum of the banks' updates may hardly tell whether a bank was there. An update has an L2 norm of at most
C, the encoding's clip, so each of the d coordinates of a sum of N gets noise of standard deviation zC, with z the noise multiplier
(McMahan et al. 2018, arXiv 1710.06963, algorithm 1). The mean then has noise of length zC sqrt(d) / N, beside an update of at most C: all
banks agreeing in every coordinate. Their ratio z sqrt(d) / N is `relative_noise`. Above 1 the noise is longer than any update that banks
could make together, and a round moves the model more by chance than by what was learnt: the criterion by which it is refused.

With customers as the unit the noise of a bank is spread over its own many customers, which is why it can be had with four banks.
"""

import math


def relative_noise(noise_multiplier: float, coordinates: int, banks: int) -> float:
    """Length of the noise of a round's mean over the greatest length of the mean update."""
    return noise_multiplier * math.sqrt(coordinates) / banks


def least_banks(noise_multiplier: float, coordinates: int) -> int:
    """With fewer the noise drowns the update: `relative_noise` is above 1."""
    return math.ceil(noise_multiplier * math.sqrt(coordinates))


def arithmetic(noise_multiplier: float, coordinates: int, banks: int) -> str:
    """The same in words."""
    z, root, ratio = noise_multiplier, math.sqrt(coordinates), relative_noise(noise_multiplier, coordinates, banks)
    return (
        f"noise that hides a whole bank is z sqrt(d) / N times as long as the longest update: with z = {z:g}, d = {coordinates:,} numbers "
        f"and N = {banks} banks {z:g} x {root:,.0f} / {banks} = {ratio:,.3g} times; it takes {least_banks(z, coordinates):,} banks for it "
        "to be no longer"
    )
