"""Write Parquet files again with pyarrow: same rows, row groups, encodings and codec.

Reads the files named on the command line into memory, says "ready", and for each line on standard
input writes them to the first argument, synced, and prints seconds of wall clock and of CPU.
"""

import os
import sys
import time

import pyarrow.parquet as pq


def settings(metadata):
    """Take the encodings of the first row group."""
    group = metadata.row_group(0)
    dictionary, encodings, statistics = [], {}, []
    for i in range(group.num_columns):
        column = group.column(i)
        if column.has_dictionary_page:
            dictionary.append(column.path_in_schema)
        else:
            for name in ("BYTE_STREAM_SPLIT", "DELTA_BINARY_PACKED"):
                if name in column.encodings:
                    encodings[column.path_in_schema] = name
        if column.is_stats_set:
            statistics.append(column.path_in_schema)
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": dictionary,
        "column_encoding": encodings,
        "write_statistics": statistics,
        "data_page_size": 1 << 20,
        "data_page_version": "1.0",
    }


def main():
    """Serve until standard input ends."""
    out, paths = sys.argv[1], sys.argv[2:]
    groups, schema, options = [], None, None
    for path in paths:
        with pq.ParquetFile(path) as source:
            schema, options = source.schema_arrow, settings(source.metadata)
            groups += [source.read_row_group(i).combine_chunks() for i in range(source.num_row_groups)]
    print("ready", flush=True)
    for _ in sys.stdin:
        began, cpu = time.perf_counter(), time.process_time()
        with open(out, "wb") as sink:
            with pq.ParquetWriter(sink, schema, **options) as writer:
                for group in groups:
                    writer.write_table(group, row_group_size=group.num_rows)
            sink.flush()
            os.fsync(sink.fileno())
        print(time.perf_counter() - began, time.process_time() - cpu, flush=True)


if __name__ == "__main__":
    main()
