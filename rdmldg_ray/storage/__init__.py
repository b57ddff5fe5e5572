"""One thin way to object storage and to the local disk.

A location is a plain string: a local path or ``s3://bucket/prefix``. Endpoint, region and
credentials of S3 come from the usual AWS environment variables and files, and from nowhere else;
no message repeats them.

Why not ``pyarrow.fs`` alone, which lists, reads and copies here? It does not write a file whole, neither on a
disk nor on S3, and does not say what to mend when a bucket, a credential or an endpoint is wrong.
"""

from rdmldg_ray.storage.copy import copy_file, copy_folder, download_folder, upload_folder
from rdmldg_ray.storage.files import (
    FileEntry,
    StorageError,
    absolute,
    as_uri,
    check_writable,
    delete_file,
    delete_folder,
    errors_explained,
    exists,
    folder_prefix,
    is_file,
    join,
    json_bytes,
    list_entries,
    list_files,
    list_folders,
    open_input,
    open_location,
    parse_json,
    read_bytes,
    read_if_there,
    read_json,
    write_bytes,
    write_chunks,
    write_if_unchanged,
    write_json,
)
from rdmldg_ray.storage.tables import open_parquet, read_images, read_table, write_table

__all__ = [
    "FileEntry",
    "StorageError",
    "absolute",
    "as_uri",
    "check_writable",
    "copy_file",
    "copy_folder",
    "delete_file",
    "delete_folder",
    "download_folder",
    "errors_explained",
    "exists",
    "folder_prefix",
    "is_file",
    "join",
    "json_bytes",
    "list_entries",
    "list_files",
    "list_folders",
    "open_input",
    "open_location",
    "open_parquet",
    "parse_json",
    "read_bytes",
    "read_if_there",
    "read_images",
    "read_json",
    "read_table",
    "upload_folder",
    "write_bytes",
    "write_chunks",
    "write_if_unchanged",
    "write_json",
    "write_table",
]
