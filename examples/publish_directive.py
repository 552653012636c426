#!/usr/bin/env python3
"""Publishes `invalidate products/123 v42` to a channel of Forebay's Redis bus, as a program that is no layer can.

publish_directive.py [HOST:PORT [CHANNEL]]   publishes it; by default to 127.0.0.1:6379, channel "forebay"
publish_directive.py --print                 prints the bytes of the event in hexadecimal instead

The formats are in Forebay's manual, in the chapter on events.
"""
import os, socket, struct, sys

# What the bus itself calls: an entry says which it is, so that a listener notices what is missing before it.
ADD = """
redis.call('HSETNX', KEYS[2], 'in', ARGV[1])
local incarnation = redis.call('HGET', KEYS[2], 'in')
local number = tonumber(redis.call('HGET', KEYS[2], 'no') or '0')
for i = 3, #ARGV do
  number = number + 1
  local text = string.format('%.0f', number)
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'in', incarnation, 'no', text, 'body', ARGV[i])
  redis.call('HSET', KEYS[2], 'no', text)
end
return #ARGV - 2
"""
RETAINED = 65536  # as many entries as the owner's bus retains


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def part(data):
    return struct.pack("<I", len(data)) + data


def invalidate(namespace, key, version):
    return struct.pack("<BQ", 1, version) + part(namespace.encode()) + part(key)


def event(directives):
    # Format 1, directives; epoch, after, until and as_of_us are zero, as of somebody who is no layer.
    said = struct.pack("<BBQQQQ", 1, 1, 0, 0, 0, 0) + b"".join(directives)
    return said + struct.pack("<I", crc32c(said))


def call(connection, *arguments):
    arguments = [item if isinstance(item, bytes) else str(item).encode() for item in arguments]
    connection.sendall(b"*%d\r\n" % len(arguments) + b"".join(b"$%d\r\n%s\r\n" % (len(a), a) for a in arguments))
    return connection.makefile("rb").readline().strip()


def main(arguments):
    body = event([invalidate("products", struct.pack("<Q", 123), 42)])  # the cache's key is a u64
    if arguments == ["--print"]:
        return print(body.hex())
    address, channel = (arguments + ["127.0.0.1:6379", "forebay"][len(arguments):])[:2]
    host, port = address.rsplit(":", 1)
    stream = "{forebay:%s}" % channel
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        reply = call(connection, "EVAL", ADD, 2, stream, stream + ":place", os.urandom(8).hex(), RETAINED, body)
    if reply != b":1":
        sys.exit("publishing to %s: the server answered %r" % (stream, reply))


main(sys.argv[1:])
