"""Recordings as they are read, spectrograms against a naive DFT, and the encoder of waves."""

import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import soundfile

from experiments.audio_dae import audio_dae
from experiments.cpc import cpc
from experiments.wav2vec2 import wav2vec2
from ssljax import sharding
from ssljax.data import audio
from ssljax.data.described import described
from ssljax.errors import InputError
from ssljax.evals.evaluator import trace_evaluator
from ssljax.losses.wav2vec2 import contrastive_loss
from ssljax.models.transformer import Transformer
from ssljax.models.wav2vec2 import Quantizer, Wav2Vec2
from ssljax.models.waves import Waves


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(path, wave, rate=8000, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, **how)


def tone(hertz, rate, seconds, level=0.5):
    return level * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


class TestRecordings:
    def test_are_averaged_resampled_and_cut(self, tmp_path):
        rate = 16000
        left, right = tone(440, rate, 1.2), tone(1000, rate, 1.2)
        both = np.stack([left, right], 1)
        for i in range(10):
            write(tmp_path / ("train", "test")[i == 0] / "a" / "deep" / f"{i}.flac", both, rate)
        write(tmp_path / "test" / "b" / "short.wav", tone(440, 8000, 0.1))
        train, test = (
            audio.recordings(str(tmp_path), split, length=3000, rate=8000)
            for split in ("train", "test")
        )
        assert train.class_names == ["a", "b"] and len(test) == 4
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
            for split in "train", "test":
                write(tmp_path / split / name / "0.wav", scale * wave, subtype="FLOAT")
        train = audio.recordings(str(tmp_path), "train", 1600)
        out = capsys.readouterr().out
        assert out.count("\n") == 3 and "2 of 3 recordings exceed 1 and are divided" in out
        assert "(up to 3.277e+04, in " in out and "whole/0.wav" in out
        for wave_read, label in zip(train.image, train.labels):
            scale = 1 if train.class_names[label] == "usual" else 2
            np.testing.assert_allclose(wave_read, 32767 * scale * wave, atol=1)
        again = audio.recordings(str(tmp_path), "train", 1600)  # By the peaks of the index.
        np.testing.assert_array_equal(again.image, train.image)

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

    def test_labels_mean_the_same_class_in_both_splits(self, tmp_path):
        for name in "train/x", "train/y", "test/y":
            write(tmp_path / name / "0.wav", tone(200, 8000, 0.2))
        test = audio.recordings(str(tmp_path), "test", 1600)
        assert len(test) == 1 and test.class_names == ["x", "y"] and test.labels.tolist() == [1]

    def test_settings_are_chosen_by_training_recordings_alone(self, tmp_path):
        for name, hertz in (("x", 200), ("y", 300)):
            for i in range(10):
                write(tmp_path / "train" / name / f"{i}.wav", tone(hertz + i, 8000, 0.4))
            write(tmp_path / "test" / name / "0.wav", tone(hertz + 10, 8000, 0.4))
        whole = audio.recordings(str(tmp_path), "train", 1600)
        for name in "xy":
            (tmp_path / "test" / name / "0.wav").write_bytes(b"gone")
        with pytest.raises(InputError, match="can't be read"):
            audio.recordings(str(tmp_path), "test", 1600)
        train, test = (
            audio.recordings(f"{tmp_path}:validation", split, 1600) for split in ("train", "test")
        )
        assert set(train.labels) == set(test.labels) == {0, 1} and len(train) > len(test)
        assert len(train) % 2 == len(test) % 2 == 0  # Whole recordings, of two windows.
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
        with pytest.raises(InputError, match="shorter windows"):
            audio.recordings("signals", "test", 1000)

    @pytest.mark.parametrize("limit", (2**31, 0))  # Resident and streamed.
    @pytest.mark.parametrize(
        "name, spoil, why",
        [
            ("x.wav", lambda b: b"not a wave", "Format not recognised"),
            ("x.wav", lambda b: b"", "Format not recognised"),
            ("x.wav", lambda b: b[:44], "is empty"),
            ("x.flac", lambda b: b[: len(b) // 2], "psf_fseek"),
            ("x.mp3", lambda b: b[: len(b) // 2], "ends before its header says"),
        ],
    )
    def test_bad_files_are_named_or_left_out_and_counted(
        self, tmp_path, monkeypatch, capsys, limit, name, spoil, why
    ):
        monkeypatch.setattr(audio, "RESIDENT_BYTES", limit)
        for label, hertz in (("a", 200), ("b", 300), ("c", 400)):
            write(tmp_path / "train" / label / name, tone(hertz, 8000, 2))
            write(tmp_path / "test" / label / name, tone(hertz, 8000, 2))
        whole = audio.recordings(str(tmp_path), "train", 8000)
        bad = tmp_path / "train" / "b" / name
        bad.write_bytes(spoil(bad.read_bytes()))
        with pytest.raises(InputError, match=f"train/b/{name} .*{why}.*: repair or remove it, or"):
            audio.recordings(str(tmp_path), "train", 8000)
        capsys.readouterr()
        rest = audio.recordings(str(tmp_path), "train", 8000, skip_bad=True)
        at = np.flatnonzero(whole.labels != 1)
        found = rest.read(np.arange(len(rest)))
        np.testing.assert_array_equal(found["image"], whole.read(at)["image"])
        np.testing.assert_array_equal(found["label"], whole.labels[at])
        assert rest.class_names == ["a", "b", "c"]
        assert f"Left out: 1 that can't be read, such as: {bad}" in capsys.readouterr().out

    def test_recordings_that_are_not_here_are_planned(self, tmp_path, capsys):
        with described():
            train, test, labelled = audio.Recordings(str(tmp_path / "gone"), wave=64).read()
        assert not labelled and train.shape == test.shape == (64,)
        assert train.read(np.arange(2))["image"].dtype == np.int16
        assert (
            "gone isn't here: planned as 1,000,000 windows of 64 samples" in capsys.readouterr().out
        )

    def test_one_recording_leaves_none_to_test_on(self, tmp_path):
        write(tmp_path / "0.wav", tone(200, 8000, 2))
        with pytest.raises(InputError, match="has too few files to hold some out to test on"):
            audio.recordings(str(tmp_path), "test", 1000)

    def test_folder_of_bad_files_is_a_sentence(self, tmp_path):
        for i in range(3):
            (tmp_path / f"{i}.wav").write_bytes(b"not a wave")
        with pytest.raises(InputError, match="None of . recordings can be read. .*wav can't be"):
            audio.recordings(str(tmp_path), "train", 100, skip_bad=True)

    def test_file_that_is_cut_after_the_start_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr(audio, "RESIDENT_BYTES", 0)
        for i in range(3):
            write(tmp_path / f"{i}.wav", tone(200, 8000, 2))
        train = audio.recordings(str(tmp_path), "train", 4000)
        for file in tmp_path.iterdir():
            file.write_bytes(file.read_bytes()[:20_000])
        assert len(train.read(np.arange(1))["image"]) == 1  # It is still there.
        with pytest.raises(InputError, match="[012].wav ends before its header says"):
            train.read(np.arange(len(train)))

    def test_windows_on_a_disk_equal_those_in_memory(self, tmp_path, monkeypatch):
        """Recordings of several lengths and rates, speakers with folders of chapters."""
        rng = np.random.default_rng(0)
        for i in range(12):
            n, rate = rng.integers(500, 9000), (8000, 16000, 22050)[i % 3]
            speaker = tmp_path / ("103", "1034", "19", "40")[i % 4] / f"{i % 2}"
            write(speaker / f"{i}.flac", 0.3 * rng.normal(size=n), rate)
        found = {}
        for limit in (2**31, 0):
            monkeypatch.setattr(audio, "RESIDENT_BYTES", limit)
            found[limit] = [audio.recordings(str(tmp_path), s, 700) for s in ("train", "test")]
        for a, b in zip(*found.values()):
            assert a.class_names == b.class_names == ["103", "1034", "19", "40"]
            np.testing.assert_array_equal(a.labels, b.labels)
            order = rng.permutation(len(a))
            for x, y in ((a.read(order), b.read(order)),):
                np.testing.assert_array_equal(x["image"], y["image"])
                np.testing.assert_array_equal(x["label"], y["label"])
        assert len(found[0][0]) > 20 and len(found[0][1]) > 3

    def test_headers_are_read_once_and_those_of_changed_files_again(self, tmp_path, monkeypatch):
        for i in range(5):
            write(tmp_path / "train" / f"{i}.wav", tone(200 + i, 8000, 0.5))
        write(tmp_path / "test" / "0.wav", tone(300, 8000, 0.5))
        read, header = [], audio._header
        monkeypatch.setattr(
            audio, "_header", lambda path: read.append(os.path.basename(path)) or header(path)
        )

        def train():
            read.clear()
            return audio.recordings(str(tmp_path), "train", 1000)

        first = train()
        assert sorted(read) == [f"{i}.wav" for i in range(5)] and first.labels is None
        audio.recordings(str(tmp_path), "test", 1000)  # Of the same folder, and of one index.
        np.testing.assert_array_equal(train().image, first.image)
        assert read == []
        write(tmp_path / "train" / "3.wav", tone(500, 8000, 0.5))  # Of the same size.
        changed = train()
        assert read == ["3.wav"]
        (tmp_path / "train" / "1.wav").unlink()
        rest = train()
        assert read == [] and len(rest) == 16
        expected = np.round(32767 * tone(500, 8000, 0.5)).reshape(4, 1000)
        np.testing.assert_allclose(changed.image[12:16], expected, atol=1)
        np.testing.assert_array_equal(rest.image[8:12], changed.image[12:16])

    def test_damaged_index_is_made_again(self, tmp_path):
        for i in range(3):
            write(tmp_path / "folder" / f"{i}.wav", tone(200 + i, 8000, 0.5))
        first = audio.recordings(str(tmp_path / "folder"), "train", 1000)
        for file in (audio.cache_file("x").parent).iterdir():
            file.write_bytes(file.read_bytes()[:-10])
        again = audio.recordings(str(tmp_path / "folder"), "train", 1000)
        np.testing.assert_array_equal(again.image, first.image)

    def test_what_was_found_is_printed(self, tmp_path, capsys):
        for i, seconds in enumerate((1, 1.2, 1.5, 0.1)):
            write(tmp_path / "train" / f"{i}.wav", tone(200, 16000, seconds), 16000)
        write(tmp_path / "test" / "0.wav", tone(200, 8000, 1))
        audio.recordings(str(tmp_path), "train", 8000)
        line, own = capsys.readouterr().out.splitlines()
        assert "5 recordings without classes, 4 to train, 1 to test" in line
        # The last is padded; of the second, a fifth of a second is left out.
        assert own.removeprefix("data      ") == (
            "train: 4 of them, 3.8 s at 16000 Hz, as 5 windows of 1 s at 8000 Hz. Left out: 0.2 s, "
            "ends shorter than half a window"
        )

    @pytest.mark.parametrize("make", (cpc, audio_dae, wav2vec2))
    def test_experiments_on_recordings_without_labels(self, tmp_path, make):
        for i in range(20):
            write(tmp_path / f"{i}.wav", tone(200 + 20 * i, 8000, 0.1))
        exp = make(audio.Recordings(str(tmp_path), wave=256), batch_size=4)
        batch = exp.data.batch(exp.data.resident(), next(exp.data.feed(0, 0, sharding.make_mesh())))
        state = jax.eval_shape(exp.init, jax.random.key(0), batch)
        assert set(batch) == {"image"}
        own = {audio_dae: {"test", "images"}, wav2vec2: {"test", "codebook"}}
        assert set(exp.evals) == {"collapse", "features"} | own.get(make, set())
        for evaluate in exp.evals.values():
            trace_evaluator(evaluate, state)

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
    @pytest.mark.parametrize("unit", ("relu", "gelu"))
    def test_equals_strided_convolutions(self, unit):
        net, x = (
            Waves(strides=(4, 2), width=6, unit=unit),
            jnp.asarray(np.random.default_rng(0).normal(size=(2, 35)), jnp.float32),
        )
        params = jax.tree.map(
            lambda a: (
                np.asarray(a) + 0.1 * np.arange(a.size, dtype=a.dtype).reshape(a.shape) / a.size
            ),
            net.init(jax.random.key(0), x),
        )
        p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])
        y = np.asarray(x, np.float64)[:, :32, None]
        for i, s in enumerate((4, 2), 1):
            y = np.pad(y, ((0, 0), (s, 0), (0, 0)))  # So that a code ends with its stretch.
            kernel = p[f"conv{i}"]["kernel"].reshape(2 * s, y.shape[-1], 6)
            starts = range(0, y.shape[1] - s, s)
            out = np.stack(
                [np.einsum("nkc,kcf->nf", y[:, t : t + 2 * s], kernel) for t in starts], 1
            )
            out = out + p[f"conv{i}"]["bias"]
            out = (out - out.mean(-1, keepdims=True)) / np.sqrt(out.var(-1, keepdims=True) + 1e-6)
            out = out * p[f"norm{i}"]["scale"] + p[f"norm{i}"]["bias"]
            gelu = lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2
            y = np.maximum(out, 0) if unit == "relu" else np.vectorize(gelu)(out)
        np.testing.assert_allclose(net.apply(params, x), y, atol=1e-4)

    def test_silence_has_a_gradient_like_that_of_sound(self):
        net = Waves(strides=(2, 2, 2), width=8, unit="gelu")
        sound = jnp.asarray(np.random.default_rng(0).normal(size=(1, 40)), jnp.float32)
        params = jax.jit(net.init)(jax.random.key(0), sound)
        size = lambda x: optax.global_norm(
            jax.grad(lambda p: net.apply(p, x)[..., 0].sum())(params)
        )
        assert size(0 * sound) < 10 * size(sound)

    def test_a_code_sees_nothing_that_comes_later(self):
        net, x = Waves(width=8), jnp.ones((1, 800))
        params = net.init(jax.random.key(0), x)
        by = jax.jit(jax.jacobian(lambda x: net.apply(params, x)[0].sum(-1)))(x)[:, 0]
        assert by.shape == (5, 800)
        for t in range(5):
            assert (by[t, 160 * (t + 1) :] == 0).all()


class TestWav2Vec2:
    NET = Wav2Vec2(
        Waves((4, 2), 8, "gelu"),
        Transformer(1, 2, 16, positions="convolutional", norm="layer", unit="gelu", reach=3),
        Quantizer(2, 5, 6),
    )

    def drawn(self):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64)), jnp.float32)
        mask = jnp.zeros((2, 8), bool).at[:, 2:6].set(True)
        at = jnp.tile(jnp.arange(2, 6), (2, 1))
        return jax.jit(self.NET.init)(jax.random.key(1), x, mask, at), x, mask, at

    def test_contexts_see_no_masked_step_and_targets_see_only_their_own(self):
        """A code of 8 samples is of these and the 12 before them."""
        params, x, mask, at = self.drawn()
        one = jax.jit(self.NET.apply)
        features = jax.jit(lambda x: self.NET.apply(params, x, method="features")[0])

        def moved(sample):  # Of the same mean and variance, as waves are normalised.
            new = x.at[:, sample].set(x[:, sample + 1]).at[:, sample + 1].set(x[:, sample])
            return one(params, new, mask, at), features(new)

        c, _, _, p, _ = one(params, x, mask, at)
        (inside, _, _, own, _), z = moved(34)  # Of step 4, and seen by step 5.
        np.testing.assert_allclose(inside, c, atol=1e-6)
        changed = np.abs(own - p).max((0, 2, 3)) > 1e-6
        np.testing.assert_array_equal(changed, [False, False, True, True])
        np.testing.assert_array_equal(
            np.abs(z - features(x)).max((0, 2)) > 1e-6, [*[0] * 4, 1, 1, 0, 0]
        )
        (outside, *_), _ = moved(10)  # Of steps 1 and 2, of which 1 is seen by all.
        assert (np.abs(outside - c).max(2) > 1e-5).all()
        np.testing.assert_allclose(c, one(params, 7 * x + 3, mask, at)[0], atol=1e-4)
        # All masked steps have one vector.
        blank = one(params, x, jnp.ones((2, 8), bool), at)[0]
        np.testing.assert_allclose(blank[0], blank[1], atol=1e-6)

    def test_codes_are_the_projected_entries(self):
        params, x, mask, at = self.drawn()
        p = params["params"]["quantizer"]
        _, q, entry, soft, _ = jax.jit(self.NET.apply)(params, x, mask, at)
        np.testing.assert_array_equal(entry, jnp.argmax(soft, -1))
        np.testing.assert_array_equal(entry, self.NET.apply(params, x, method="entries")[:, 2:6])
        book = np.asarray(p["codebooks"])
        for i in np.ndindex(2, 4):
            code = np.concatenate([book[g, entry[i][g]] for g in range(2)])
            want = code @ p["project"]["kernel"] + p["project"]["bias"]
            np.testing.assert_allclose(q[i], want, atol=1e-5)

    def test_gradients_reach_all_that_the_paper_trains(self):
        """Among them the codebooks and, through the choice, the logits and the encoder alone."""
        params, x, mask, at = self.drawn()
        others = jnp.tile((jnp.arange(4)[:, None] + jnp.array([1, 2, 3])) % 4, (2, 1, 1))

        def loss(params, tau):
            c, q, entry, *_ = self.NET.apply(params, x, mask, at, jax.random.key(2), tau)
            return contrastive_loss(jax.lax.stop_gradient(c), q, entry, others, jnp.ones((2, 4)))[0]

        grad = jax.jit(jax.grad(loss))
        cold, warm = (grad(params, tau)["params"] for tau in (0.5, 2.0))
        norms = {k: float(optax.global_norm(v)) for k, v in cold.items()}
        assert {k for k, v in norms.items() if v} == {"waves", "norm", "quantizer"}
        assert all(float(optax.global_norm(v)) > 0 for v in cold["quantizer"].values())
        # The choice is the same, so that the temperature moves what is behind it alone.
        books = [grad["quantizer"]["codebooks"] for grad in (cold, warm)]
        np.testing.assert_allclose(*books, rtol=1e-5)
        assert np.abs(cold["waves"]["conv1"]["kernel"] - warm["waves"]["conv1"]["kernel"]).max() > 0

    def test_what_does_not_fit_is_a_sentence(self):
        with pytest.raises(InputError, match="Spans of 20 steps can't begin at a share of 0.1"):
            wav2vec2(span=20, share=0.1)
        with pytest.raises(InputError, match="a width that 16 divides, not 24"):
            net = self.NET.clone(context=self.NET.context.clone(width=24))
            jax.eval_shape(net.init, jax.random.key(0), *self.drawn()[1:])
