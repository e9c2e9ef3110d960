"""Floating point formats, in exact fractions."""

from fractions import Fraction
from typing import NamedTuple

Number = float | Fraction


class Format(NamedTuple):
    """A binary floating point format: what its numbers are multiples of."""

    digits: int
    """Significant binary digits."""
    lowest: int
    """The smallest positive number is 2^lowest."""

    def ulp(self, number: Number) -> Fraction:
        """Return the unit in the last place, the gap between numbers of this size.

        >>> FLOAT32.ulp(1.0) == Fraction(1, 2**23)
        True
        """
        if number == 0:
            return Fraction(2) ** self.lowest
        numerator, denominator = abs(Fraction(number)).as_integer_ratio()
        exponent = numerator.bit_length() - denominator.bit_length()
        if Fraction(2) ** exponent > Fraction(numerator, denominator):
            exponent -= 1  # now 2^exponent <= |number| < 2^(exponent + 1)
        return Fraction(2) ** max(exponent - self.digits + 1, self.lowest)

    def round(self, number: Number) -> Fraction:
        """Return the nearest number of the format; of two, the even one.

        >>> FLOAT32.round(Fraction(1, 10))
        Fraction(13421773, 134217728)
        """
        ulp = self.ulp(number)
        return round(Fraction(number) / ulp) * ulp

    def shortest(self, number: Number) -> str:
        """Return the fewest decimal digits that are nearest to this number.

        >>> FLOAT32.shortest(FLOAT32.round(0.1)), FLOAT64.shortest(0.1 + 0.2)
        ('0.1', '0.30000000000000004')
        """
        texts = (f"{float(number):.{digits}g}" for digits in range(1, 18))
        return next(text for text in texts if self.round(Fraction(text)) == number)


FLOAT32 = Format(24, -149)
FLOAT64 = Format(53, -1074)
