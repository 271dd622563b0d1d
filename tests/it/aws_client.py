#!/usr/bin/env python3
"""Checks a KVS-compatible endpoint with a real AWS client.

Needs boto3. Prints one line per check and ends with status 1 at the first that fails:

    aws_client.py http://127.0.0.1:4566
"""

import argparse
import datetime
import sys
import uuid

import boto3
import botocore.auth
from botocore.config import Config
from botocore.exceptions import ClientError

# The endpoint's built-in credentials.
SECRET = "localEndpointSecretKeyOpensNothingElse00"
VALID = ("AKIALOCALENDPOINT001", SECRET, None)
TEMPORARY = ("ASIALOCALENDPOINT002", SECRET, "localEndpointSessionToken")
EXPIRED = ("ASIALOCALENDPOINT003", SECRET, "localEndpointExpiredToken")


def client(endpoint, credentials, ca_file=None):
    key, secret, token = credentials
    return boto3.client(
        "kinesisvideo",
        endpoint_url=endpoint,
        region_name="eu-west-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        aws_session_token=token,
        verify=ca_file,
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=10),
    )


def check(what, truth):
    print(("ok      " if truth else "FAILED  ") + what)
    if not truth:
        sys.exit(1)


def error_of(call, **arguments):
    """The error code and HTTP status that the call is refused with."""
    try:
        call(**arguments)
    except ClientError as error:
        return error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
    return None, 200


def check_streams(kvs):
    prefix = f"check-{uuid.uuid4().hex[:8]}-"
    names = [prefix + letter for letter in "abc"]
    for name in names:
        arn = kvs.create_stream(
            StreamName=name,
            DataRetentionInHours=24,
            MediaType="video/h264",
            Tags={"made": "with create"},
        )["StreamARN"]
        check(f"create {name}", f":stream/{name}/" in arn)
    name = names[0]
    again = error_of(kvs.create_stream, StreamName=name)
    check("create again is refused", again == ("ResourceInUseException", 400))

    info = kvs.describe_stream(StreamName=name)["StreamInfo"]
    check("describe by name", info["StreamName"] == name and info["DataRetentionInHours"] == 24)
    check("stream is active", info["Status"] == "ACTIVE")
    age = datetime.datetime.now(datetime.timezone.utc) - info["CreationTime"]
    check("creation time", abs(age) < datetime.timedelta(minutes=1))
    by_arn = kvs.describe_stream(StreamARN=info["StreamARN"])["StreamInfo"]
    check("describe by ARN", by_arn == info)
    missing = error_of(kvs.describe_stream, StreamName=prefix + "none")
    check("describe of a missing stream", missing == ("ResourceNotFoundException", 404))
    data = kvs.get_data_endpoint(StreamName=name, APIName="PUT_MEDIA")["DataEndpoint"]
    check("data endpoint", data.startswith(("http://", "https://")))

    kvs.tag_stream(StreamName=name, Tags={"site": "gate 3", "made": "over"})
    tags = kvs.list_tags_for_stream(StreamName=name)["Tags"]
    check("tag", tags == {"site": "gate 3", "made": "over"})
    kvs.untag_stream(StreamName=name, TagKeyList=["made"])
    check("untag", kvs.list_tags_for_stream(StreamName=name)["Tags"] == {"site": "gate 3"})
    reserved = error_of(kvs.tag_stream, StreamName=name, Tags={"aws:x": "y"})
    check("reserved tag", reserved[0] == "InvalidArgumentException")

    change = {"Operation": "INCREASE_DATA_RETENTION", "DataRetentionChangeInHours": 24}
    kvs.update_data_retention(StreamName=name, CurrentVersion=info["Version"], **change)
    after = kvs.describe_stream(StreamName=name)["StreamInfo"]
    check("retention", after["DataRetentionInHours"] == 48 and after["Version"] != info["Version"])
    stale = error_of(kvs.update_data_retention, StreamName=name, CurrentVersion=info["Version"], **change)
    check("stale version", stale[0] == "VersionMismatchException")

    condition = {"ComparisonOperator": "BEGINS_WITH", "ComparisonValue": prefix}
    pages = kvs.get_paginator("list_streams").paginate(
        StreamNameCondition=condition, PaginationConfig={"PageSize": 2}
    )
    pages = [[stream["StreamName"] for stream in page["StreamInfoList"]] for page in pages]
    check("list in pages", pages == [names[:2], names[2:]])

    for name in names:
        info = kvs.describe_stream(StreamName=name)["StreamInfo"]
        kvs.delete_stream(StreamARN=info["StreamARN"], CurrentVersion=info["Version"])
        gone = error_of(kvs.describe_stream, StreamName=name)[0]
        check(f"delete {name}", gone == "ResourceNotFoundException")


def check_refusals(endpoint, ca_file):
    def refused(credentials):
        return error_of(client(endpoint, credentials, ca_file).list_streams)

    check("temporary credentials", refused(TEMPORARY) == (None, 200))
    check("unknown key", refused(("AKIANOBODY", SECRET, None)) == ("UnrecognizedClientException", 403))
    check("wrong secret", refused((VALID[0], "wrong", None)) == ("InvalidSignatureException", 403))
    other_token = (TEMPORARY[0], SECRET, "other")
    check("wrong token", refused(other_token) == ("UnrecognizedClientException", 403))
    check("expired token", refused(EXPIRED) == ("ExpiredTokenException", 403))

    now = botocore.auth.get_current_datetime
    for minutes in (20, -20, 14, -14):
        def shifted(*arguments, minutes=minutes, **named):
            return now(*arguments, **named) + datetime.timedelta(minutes=minutes)

        botocore.auth.get_current_datetime = shifted
        answer = refused(VALID)
        botocore.auth.get_current_datetime = now
        expected = ("InvalidSignatureException", 403) if abs(minutes) > 15 else (None, 200)
        check(f"clock {minutes:+} minutes off", answer == expected)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("endpoint", help="URL, such as http://127.0.0.1:4566")
    parser.add_argument("--ca-file", help="PEM file to trust, for https")
    arguments = parser.parse_args()
    check_streams(client(arguments.endpoint, VALID, arguments.ca_file))
    check_refusals(arguments.endpoint, arguments.ca_file)
    print("all checks passed")


if __name__ == "__main__":
    main()
