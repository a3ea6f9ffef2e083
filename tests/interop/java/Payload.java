import java.security.MessageDigest;
import java.util.HexFormat;

/** What entry N of S bytes holds (byte j is (31 j + N) mod 256), and the digest of many entries. */
final class Payload {
    static byte[] of(long entryId, int size) {
        byte[] payload = new byte[size];
        for (int j = 0; j < size; j++) {
            payload[j] = (byte) (31 * j + entryId);
        }
        return payload;
    }

    /** SHA-256 over id (8 bytes), size (4 bytes) and payload of each entry, in order. */
    static final class Digest {
        private final MessageDigest digest;
        long count;
        long bytes;

        Digest() throws Exception {
            digest = MessageDigest.getInstance("SHA-256");
        }

        void add(long entryId, byte[] payload) {
            digest.update(java.nio.ByteBuffer.allocate(12).putLong(entryId).putInt(payload.length).array());
            digest.update(payload);
            count++;
            bytes += payload.length;
        }

        String hex() {
            return HexFormat.of().formatHex(digest.digest());
        }
    }

    private Payload() {}
}
