import pytest

from amalgam.errors.blends import TooManyBlends
from amalgam.services.blend_limits import BlendsPerMinute


def test_each_client_has_its_own_minute() -> None:
    now = [100.0]
    limit = BlendsPerMinute(2, lambda: now[0])
    limit.count("one")
    now[0] = 110.0
    limit.count("one")
    with pytest.raises(TooManyBlends) as refused:
        limit.count("one")
    assert refused.value.retry_after_s == 50.0
    limit.count("two")
    now[0] = 160.0
    limit.count("one")
    with pytest.raises(TooManyBlends) as refused:
        limit.count("one")
    assert refused.value.retry_after_s == 10.0


def test_a_limit_of_none_refuses_every_one() -> None:
    with pytest.raises(TooManyBlends) as refused:
        BlendsPerMinute(0, lambda: 1.0).count("one")
    assert refused.value.retry_after_s == 60.0
