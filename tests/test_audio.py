"""Recordings as they are read, spectrograms against a naive DFT, and the encoder of waves."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from ssljax.data import audio
from ssljax.errors import InputError
from ssljax.models.waves import Waves


def tone(hertz, rate, seconds, level=0.5):
    return level * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


class TestRecordings:
    def test_are_averaged_resampled_and_cut(self, tmp_path):
        rate = 16000
        left, right = tone(440, rate, 1.2), tone(1000, rate, 1.2)
        (tmp_path / "a" / "deep").mkdir(parents=True)
        (tmp_path / "b").mkdir()
        for i in range(10):
            soundfile.write(
                tmp_path / "a" / "deep" / f"{i}.flac",
                np.stack([left, right], 1),
                rate,
                subtype="PCM_16",
            )
        soundfile.write(tmp_path / "b" / "short.wav", tone(440, 8000, 0.1), 8000)
        train, test = (
            audio.recordings(str(tmp_path), split, length=3000, rate=8000)
            for split in ("train", "test")
        )
        assert train.class_names == ["a", "b"] and len(test) == 4  # Three of file 0; file 10.
        x = train.read(np.arange(len(train)))
        assert x["image"].shape == (9 * 3, 3000) and x["image"].dtype == np.int16
        np.testing.assert_array_equal(x["label"], [0] * 27)
        expected = 32767 * (tone(440, 8000, 1.2) + tone(1000, 8000, 1.2)) / 2
        # The recording's own ends are not resampled well, but those of windows within it are.
        found = x["image"][:3].ravel()
        np.testing.assert_allclose(found[50:], expected[50:9000], atol=120)
        last = test.image[np.flatnonzero(test.labels == 1)[0]]
        np.testing.assert_allclose(last[:800], 32767 * tone(440, 8000, 0.1), atol=2)
        np.testing.assert_array_equal(last[800:], 0)

    @pytest.mark.parametrize(
        "name, own, subtype",
        [
            ("x.wav", 44100, "PCM_16"),
            ("x.wav", 22050, "ULAW"),
            ("x.wav", 8000, "GSM610"),  # libsndfile doesn't seek in it.
            ("x.wav", 12345, "DOUBLE"),
            ("x.flac", 8000, "PCM_24"),
            ("x.ogg", 44100, "VORBIS"),  # libsndfile seeks to wrong places in it.
            ("x.mp3", 44100, "MPEG_LAYER_III"),
        ],
    )
    def test_windows_are_slices_of_the_whole_resampled_recording(
        self, tmp_path, monkeypatch, name, own, subtype
    ):
        for folder in "train/a", "test/a":
            (tmp_path / folder).mkdir(parents=True)
            noise = 0.05 * np.random.default_rng(0).normal(size=round(3.1 * own))
            wave = tone(300, own, 3.1) + noise
            soundfile.write(tmp_path / folder / name, wave, own, subtype=subtype)
        whole, _ = soundfile.read(tmp_path / "test" / "a" / name)
        for rate in (8000, 16000, 11025, 9999):
            expected = audio.to_int16(audio.resample(whole, own, rate))
            length = 1501
            n = math.floor(len(expected) / length + 0.5)
            expected = np.pad(expected, (0, length))[: n * length].reshape(n, length)
            found = {}
            for limit in (2**31, 0):  # Resident and streamed.
                monkeypatch.setattr(audio, "RESIDENT_BYTES", limit)
                monkeypatch.setattr(audio, "BLOCK", 4000)
                source = audio.recordings(str(tmp_path), "test", length, rate)
                assert isinstance(source, audio.Arrays if limit else audio.OnDisk)
                found[limit] = source.read(np.arange(n))["image"].astype(int)
                assert len(source) == n
                # An mp3 decoder's rounding depends on where it starts.
                np.testing.assert_allclose(found[limit], expected, atol=int(name == "x.mp3"))

    def test_reading_windows_apart_is_caught(self, tmp_path):
        """What the test above must be able to see: a window resampled without its neighbours."""
        wave = tone(300, 44100, 1)
        whole = audio.resample(wave, 44100, 8000)
        apart = audio.resample(wave[4410:8820], 44100, 8000)
        assert np.abs(apart - whole[800:1600]).max() > 0.01

    def test_floats_beyond_1_are_divided_by_their_peak_and_said(self, tmp_path, capsys):
        wave = tone(200, 8000, 0.2)
        for name, scale in (("loud", 6.0), ("whole", 65536.0), ("usual", 1.0)):
            (tmp_path / name).mkdir()
            for split in range(2):
                file = tmp_path / name / f"{split}.wav"
                soundfile.write(file, scale * wave, 8000, subtype="FLOAT")
        train = audio.recordings(str(tmp_path), "train", 1600)
        out = capsys.readouterr().out
        assert out.count("\n") == 1 and "3 of 5 recordings exceed 1 and are divided" in out
        assert "(up to 3.277e+04, in " in out and "whole" in out
        for wave_read, label in zip(train.image, train.labels):
            scale = 1 if train.class_names[label] == "usual" else 2
            np.testing.assert_allclose(wave_read, 32767 * scale * wave, atol=1)
        audio.recordings(str(tmp_path), "test", 1600)
        assert "1 of 1" in capsys.readouterr().out

    @pytest.mark.parametrize("bad", (np.nan, np.inf))
    def test_samples_that_are_not_finite_are_a_sentence(self, tmp_path, bad):
        (tmp_path / "a").mkdir()
        for i in range(3):
            wave = tone(200, 8000, 0.2)
            wave[1000] = bad if i == 2 else 0
            soundfile.write(tmp_path / "a" / f"{i}.wav", wave, 8000, subtype="DOUBLE")
        with pytest.raises(InputError, match="2.wav holds samples that are not finite: repair"):
            audio.recordings(str(tmp_path), "train", 100)

    def test_what_resampling_cannot_hold_is_gone(self):
        wave = audio.resample(tone(3000, 16000, 1), 16000, 4000)
        assert len(wave) == 4000 and np.abs(wave[100:-100]).max() < 0.01
        np.testing.assert_allclose(
            audio.to_int16(np.array([-2, -1, 0, 0.5, 2])), [-32767, -32767, 0, 16384, 32767]
        )

    def test_own_splits(self, tmp_path):
        for split, names in (("train", "xy"), ("test", "y")):
            for name in names:
                (tmp_path / split / name).mkdir(parents=True)
                soundfile.write(tmp_path / split / name / "0.wav", tone(200, 8000, 0.2), 8000)
        test = audio.recordings(str(tmp_path), "test", 1600)
        assert len(test) == 1 and test.class_names == ["x", "y"] and test.labels.tolist() == [1]
        for name, other in (("test", "validation"), ("validation", "val")):
            (tmp_path / name).rename(tmp_path / other)
            found = audio.recordings(str(tmp_path), "test", 1600)
            np.testing.assert_array_equal(found.image, test.image)
            assert found.class_names == ["x", "y"] and found.labels.tolist() == [1]
        (tmp_path / "val").rename(tmp_path / "dev")
        with pytest.raises(
            InputError,
            match="has a folder train but no folder test: add .*test, with a folder a class",
        ):
            audio.recordings(str(tmp_path), "test", 1600)

    def test_settings_are_chosen_by_training_recordings_alone(self, tmp_path):
        for split in "train", "test":
            for name, hertz in (("x", 200), ("y", 300)):
                (tmp_path / split / name).mkdir(parents=True)
                for i in range(10):
                    soundfile.write(
                        tmp_path / split / name / f"{i}.wav", tone(hertz + i, 8000, 0.4), 8000
                    )
        whole = audio.recordings(str(tmp_path), "train", 1600)
        (tmp_path / "test").rename(tmp_path / "gone")  # Were it read, nothing could be.
        with pytest.raises(InputError, match="no folder test"):
            audio.recordings(str(tmp_path), "test", 1600)
        (tmp_path / "test" / "x").mkdir(parents=True)
        train, test = (
            audio.recordings(f"{tmp_path}:validation", split, 1600) for split in ("train", "test")
        )
        assert train.labels.tolist() == [0] * 18 + [1] * 18 and test.labels.tolist() == [
            0,
            0,
            1,
            1,
        ]  # Whole recordings.
        waves = lambda source: sorted(wave.tobytes() for wave in source.image)
        assert sorted(waves(train) + waves(test)) == waves(whole)
        a, b = (audio.recordings("signals:validation", split, 100) for split in ("train", "test"))
        assert (
            np.bincount(a.labels)[0] == 11 and np.bincount(b.labels)[0] == 4
        )  # 355 and 178 of EEG's first 533 samples.

    def test_bad_input_is_a_sentence(self, tmp_path):
        with pytest.raises(InputError, match="no folder"):
            audio.recordings(str(tmp_path / "none"), "train", 100)
        with pytest.raises(InputError, match="holds no recordings"):
            audio.recordings(str(tmp_path), "train", 100)
        (tmp_path / "a").mkdir()
        for i in range(3):
            (tmp_path / "a" / f"{i}.wav").write_bytes(b"not a wave")
        with pytest.raises(InputError, match="can't be read as a recording"):
            audio.recordings(str(tmp_path), "train", 100)
        with pytest.raises(InputError, match="shorter windows"):
            audio.recordings("signals", "test", 1000)

    def test_signals_of_one_split_are_not_in_the_other(self):
        train, test = (audio.recordings("signals", split, 64) for split in ("train", "test"))
        assert train.num_classes == test.num_classes == 5 and set(test.labels) == set(range(5))
        seen = {
            w.tobytes()
            for w in np.lib.stride_tricks.sliding_window_view(train.image, 16, axis=1).reshape(
                -1, 16
            )
        }
        assert not any(w[i : i + 16].tobytes() in seen for w in test.image for i in range(48))
        assert (
            0.01 < np.mean(np.abs(train.image) == 32767) + 0.01 < 0.05
        )  # Few samples are cut off.


class TestLogMel:
    def test_equals_a_naive_transform(self):
        rng = np.random.default_rng(0)
        x, rate, size, hop, bands = rng.normal(size=(2, 70)), 1000, 32, 16, 5
        mel = lambda f: 2595 * math.log10(1 + f / 700)
        edges = [
            700 * (10 ** (mel(rate / 2) * i / (bands + 1) / 2595) - 1) for i in range(bands + 2)
        ]
        expected = np.zeros((2, 3, bands))
        for n in range(2):
            for t in range(3):
                frame = [
                    x[n, t * hop + i] * (0.5 - 0.5 * math.cos(2 * math.pi * i / size))
                    for i in range(size)
                ]
                for b in range(bands):
                    for k in range(size // 2 + 1):
                        f = k * rate / size
                        low, mid, high = edges[b : b + 3]
                        weight = max(0, min((f - low) / (mid - low), (high - f) / (high - mid)))
                        power = (
                            abs(
                                sum(
                                    v * np.exp(-2j * math.pi * k * i / size)
                                    for i, v in enumerate(frame)
                                )
                            )
                            ** 2
                        )
                        expected[n, t, b] += weight * power
        found = audio.log_mel(jnp.asarray(x, jnp.float32), rate, size, hop, bands)
        np.testing.assert_allclose(found, np.log(expected + 1e-6), atol=1e-4)

    @pytest.mark.parametrize("hertz", (300, 1000, 2500))
    def test_a_tone_lands_in_its_band(self, hertz):
        y = np.asarray(audio.log_mel(jnp.asarray(tone(hertz, 8000, 0.5)[None], jnp.float32), 8000))
        mel = lambda f: 2595 * np.log10(1 + f / 700)
        assert (
            abs(y[0].argmax(-1) + 1 - mel(hertz) / mel(4000) * 41) <= 0.75
        ).all()  # Band b's centre is b + 1 of 41.

    def test_empty_bands_and_short_waves_are_a_sentence(self):
        with pytest.raises(InputError, match="too many"):
            audio.mel_filters(8000, 64, 40)
        with pytest.raises(InputError, match="shorter than"):
            audio.log_mel(jnp.zeros((1, 100)), 8000)


class TestWaves:
    def test_equals_strided_convolutions(self):
        net, x = (
            Waves(strides=(4, 2), width=6),
            jnp.asarray(np.random.default_rng(0).normal(size=(2, 35)), jnp.float32),
        )
        params = net.init(jax.random.key(0), x)
        p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])
        y = np.asarray(x, np.float64)[:, :32, None]
        for i, s in enumerate((4, 2), 1):
            y = np.pad(y, ((0, 0), (s, 0), (0, 0)))  # So that a code ends with its stretch.
            kernel = p[f"conv{i}"]["kernel"].reshape(2 * s, y.shape[-1], 6)
            starts = range(0, y.shape[1] - s, s)
            out = np.stack(
                [np.einsum("nkc,kcf->nf", y[:, t : t + 2 * s], kernel) for t in starts], 1
            )
            out = (out - out.mean(-1, keepdims=True)) / np.sqrt(out.var(-1, keepdims=True) + 1e-6)
            y = np.maximum(out, 0)
        np.testing.assert_allclose(net.apply(params, x), y, atol=1e-4)

    def test_a_code_sees_nothing_that_comes_later(self):
        net, x = Waves(width=8), jnp.ones((1, 800))
        params = net.init(jax.random.key(0), x)
        by = jax.jit(jax.jacobian(lambda x: net.apply(params, x)[0].sum(-1)))(x)[:, 0]
        assert by.shape == (5, 800)
        for t in range(5):
            assert (by[t, 160 * (t + 1) :] == 0).all()
