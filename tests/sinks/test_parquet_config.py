from __future__ import annotations

import pickle
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from raybatch.sinks.parquet import ParquetConfig
from raybatch.sinks.parquet_writer import RowGroupWriter


def _config(**options: Any) -> ParquetConfig:
    return ParquetConfig(**{"type": "parquet", "path": "out", **options})


def test_a_relative_path_is_relative_to_the_pipeline_file() -> None:
    config = ParquetConfig.model_validate(
        {"type": "parquet", "path": "out"}, context={"base_dir": "/pipelines"}
    )
    assert config.path == "/pipelines/out"


def test_files_are_of_the_size_that_readers_want_by_default() -> None:
    layout = _config().build().layout()
    assert (layout.target_bytes, layout.small_bytes) == (256 << 20, 32 << 20)


def test_a_plan_fixes_the_partitions_and_reads_their_columns() -> None:
    config = _config(partition_by=["lang", "day"])
    assert config.build().layout().partition_by == ("lang", "day")
    assert config.reads() == ["lang", "day"]


def test_a_sink_travels_by_pickle() -> None:
    sink = _config(compression="snappy").build()
    assert pickle.loads(pickle.dumps(sink)) == sink


@pytest.mark.parametrize("codec", ["zstd", "snappy", "gzip", "lz4", "brotli", "none"])
def test_every_codec_of_the_config_can_write(codec: str) -> None:
    schema = pa.schema([("a", pa.int64())])
    writer = RowGroupWriter(schema, options=_config(compression=codec).build().options, metadata={})
    writer.write(pa.table({"a": [1, 2]}))
    assert pq.read_table(pa.BufferReader(writer.close()))["a"].to_pylist() == [1, 2]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"compression": "zip"}, "compression"),
        ({"compression_level": 23}, "compression_level of zstd is from "),
        ({"compression": "gzip", "compression_level": 0}, "compression_level of gzip is from 1 to 9"),
        ({"compression": "snappy", "compression_level": 1}, "compression 'snappy' has no compression_level"),
        ({"compression": "none", "compression_level": 1}, "compression 'none' has no compression_level"),
        ({"row_group_rows": 0}, "row_group_rows"),
        ({"row_group_bytes": -1}, "row_group_bytes"),
        ({"target_file_bytes": 1000}, "target_file_bytes"),
        ({"row_group_size": 10}, "row_group_size"),
        ({"path": ""}, "path"),
        ({"partition_by": ["a", "a"]}, "partition_by"),
        ({"partition_by": ["_row"]}, "'_row' stays in the files"),
        ({"partition_by": ["a/b"]}, "'a/b' cannot name a folder"),
        ({"partition_by": "lang"}, "partition_by"),
        ({"max_partitions": 0}, "max_partitions"),
    ],
)
def test_an_option_that_cannot_be_is_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        _config(**options)
