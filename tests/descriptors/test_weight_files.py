"""State dicts in files of torch.save, whole, odd and damaged."""

import contextlib
import io
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from mmray.descriptors import torch_pickle
from mmray.descriptors.weight_files import fill, read_checkpoint
from mmray.system.errors import InputError

WANTED = torch.zeros(3, 4)
ROWS = torch.arange(12.0).reshape(3, 4)


def filled(path, value):
    """The tensor a of a network, from a file."""
    wanted = {"a": value.clone(), "num_batches_tracked": torch.tensor(0)}
    fill(wanted, read_checkpoint(path).state, source=str(path), network="tiny")
    return wanted["a"]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "value",
    [
        *(ROWS, ROWS.double(), ROWS.half(), ROWS.to(torch.bfloat16), ROWS.to(torch.float8_e4m3fn)),
        *(ROWS.reshape(4, 3).t(), torch.cat([ROWS, ROWS])[2:5], torch.ones(1).expand(3, 4)),
        torch.nn.Parameter(ROWS),
    ],
)
def test_dense_real_tensors_of_any_layout_are_read(tmp_path, value, zipped):
    state = OrderedDict(a=value, num_batches_tracked=torch.tensor(7), other=torch.ones(2))
    path = tmp_path / "w.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(filled(path, WANTED), value.detach().float())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (ROWS.to_sparse(), "a is sparse, tiny needs a dense tensor"),
        (torch.empty(2**40, 4, device="meta"), "a is on the meta device, without values"),
        (ROWS.to(torch.complex64), "a is of complex64, tiny needs real floating-point numbers"),
        (ROWS.int(), "a is of int32"),
        (ROWS / 0, "a holds NaN, infinity"),
        (ROWS.double() * 1e300, ".*too large for float32"),
        (torch.ones(1).expand(2**31, 4), r"a has the shape \(2147483648, 4\), tiny needs \(3, 4\)"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch's, of quantised tensors
def test_other_tensors_are_refused_by_name(tmp_path, value, words, zipped):
    path = tmp_path / "w.pth"
    torch.save({"a": value}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=rf"w\.pth: {words}"):
        filled(path, WANTED)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore")  # torch's: such tensors will be gone
def test_quantised_tensors_are_refused_by_name(tmp_path, zipped):
    value = torch.quantize_per_tensor(ROWS, 0.1, 0, torch.qint8)
    torch.save({"a": value}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"w\.pth: a is quantised, tiny needs a dense tensor"):
        filled(tmp_path / "w.pth", WANTED)


def test_a_checkpoint_around_a_state_dict_is_named(tmp_path):
    torch.save({"epoch": 3, "state_dict": {"a": ROWS}}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="'epoch' is of type int; save one of 'state_dict' alone"):
        read_checkpoint(tmp_path / "w.pth")
    torch.save([ROWS], tmp_path / "w.pth")
    with pytest.raises(InputError, match="a mapping of names to tensors is wanted"):
        read_checkpoint(tmp_path / "w.pth")


def repacked(path, change, **options):
    """The archive of {"a": ROWS} after a change of its members."""
    torch.save({"a": ROWS}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def storage_of(parts):
    return next(name for name in parts if name.endswith("/data/0"))


def test_a_tensor_beyond_its_storage_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "w.pth"
    repacked(path, lambda parts: parts.update({storage_of(parts): bytes(8)}))
    with pytest.raises(InputError, match=r"w\.pth: 'a': cannot be read"):
        read_checkpoint(path)
    repacked(path, lambda parts: parts.pop(storage_of(parts)))
    with pytest.raises(InputError, match=r"w\.pth: cannot be read as a state dict"):
        read_checkpoint(path)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "w.pth"
    options = {"compression": zipfile.ZIP_DEFLATED}
    repacked(path, lambda parts: parts.update({storage_of(parts): bytes(80 << 20)}), **options)
    assert path.stat().st_size < 200_000
    with pytest.raises(InputError, match="bytes out of"):
        read_checkpoint(path)


def test_keys_that_hash_for_ever_are_refused(tmp_path):
    """Sixty nested pairs have 2 ** 60 leaves: hash() visits each."""
    pairs = b"".join(
        b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60)
    )
    # A dict, the number 1 in place 0 of the memo, pairs of what came before, the last as a key.
    data = b"\x80\x02}K\x01q\0" + pairs + b"K\x01s."

    def change(parts):
        name = next(name for name in parts if name.endswith("data.pkl"))
        parts[name] = data

    repacked(tmp_path / "w.pth", change)
    with pytest.raises(InputError, match=r"w\.pth: "):
        read_checkpoint(tmp_path / "w.pth")


def test_old_files_that_claim_terabytes_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"a": ROWS}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    count = struct.pack("<q", 12)
    path.write_bytes(data[::-1].replace(count[::-1], struct.pack(">q", 2**40), 1)[::-1])
    with pytest.raises(InputError, match="bytes, which are not there"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(1) + data)
    with pytest.raises(InputError, match=r"w\.pth: "):
        read_checkpoint(path)


def test_torch_itself_reads_what_is_read_here(tmp_path):
    """The oracle: torch.load of the same whole files."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    sink = io.BytesIO()
    torch.save(net.state_dict(), sink)
    (tmp_path / "w.pth").write_bytes(sink.getvalue())
    ours = read_checkpoint(tmp_path / "w.pth").state
    theirs = torch.load(tmp_path / "w.pth", weights_only=True)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_pickle_that_takes_minutes_is_not_read_to_its_end(tmp_path, monkeypatch):
    """Each byte is an operation, and twenty thousand bytes of an archive hold millions of them."""
    assert torch_pickle._LARGEST <= 1 << 21
    monkeypatch.setattr(torch_pickle, "_LARGEST", 100_000)
    marks, path = b"\x80\x02" + b"(" * (1 << 20), tmp_path / "w.pth"
    packed = {"compression": zipfile.ZIP_DEFLATED}
    repacked(path, lambda parts: parts.update({"w/data.pkl": marks}), **packed)
    assert path.stat().st_size < 5000
    with pytest.raises(InputError, match=r"w\.pth: .*has more than 100000 bytes"):
        read_checkpoint(path)
    before = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": sys.byteorder == "little"})
    path.write_bytes(b"".join(pickle.dumps(each, 2) for each in before) + marks)
    with pytest.raises(InputError, match=r"w\.pth: .*has more than 100000 bytes"):
        read_checkpoint(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_archive_packed_in_any_way_is_refused(tmp_path, method):
    path, refused = tmp_path / "w.pth", 0
    repacked(path, lambda parts: None, compression=method)
    assert torch.equal(filled(path, WANTED), ROWS)
    whole = path.read_bytes()
    for place in range(40, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with contextlib.suppress(InputError):
            read_checkpoint(path)
            continue
        refused += 1
    assert refused > 10


def test_numbers_of_four_bits_are_refused_by_name():
    packed = torch.zeros(3, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    with pytest.raises(InputError, match=r"^w: a: cannot be read \(NotImplementedError"):
        fill({"a": WANTED.clone()}, {"a": packed}, source="w", network="tiny")


def test_an_empty_tensor_keeps_its_shape(tmp_path):
    torch.save({"a": torch.empty(0, 3)}, tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth").state["a"].shape == (0, 3)


def test_the_ending_of_safetensors_is_known_in_capitals(tmp_path):
    save_file({"a": ROWS}, tmp_path / "W.SAFETENSORS")
    assert torch.equal(filled(tmp_path / "W.SAFETENSORS", WANTED), ROWS)
