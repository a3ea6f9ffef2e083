import com.fasterxml.jackson.databind.JsonNode;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import org.apache.bookkeeper.client.BKException;
import org.apache.bookkeeper.client.LedgerHandle;
import org.apache.bookkeeper.client.LedgerHandleAdv;

/** Many adds of one ledger, pipelined, and what became of them. */
final class Adds {
    private final LedgerHandle handle;
    private final long[] ids; // null: the handle counts
    private final int count;
    private final int size;
    private final Semaphore room;
    private final CountDownLatch ended = new CountDownLatch(1);
    private final List<Long> acknowledged = new ArrayList<>();
    private int sent;
    private int failed;
    private int firstFailure;
    private boolean allSent;

    Adds(LedgerHandle handle, JsonNode arguments) {
        this.handle = handle;
        this.size = arguments.path("size").asInt(100);
        this.room = new Semaphore(arguments.path("outstanding").asInt(1000));
        if (arguments.has("ids")) {
            ids = new long[arguments.get("ids").size()];
            for (int i = 0; i < ids.length; i++) {
                ids[i] = arguments.get("ids").get(i).asLong();
            }
            count = ids.length;
        } else {
            ids = null;
            count = arguments.path("count").asInt(1);
        }
    }

    void startThread() {
        Thread thread = new Thread(() -> {
            try {
                sendAll();
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
        });
        thread.setDaemon(true);
        thread.start();
    }

    void sendAll() throws InterruptedException {
        long next = handle.getLastAddPushed() + 1; // a handle that failed counts no more
        for (int i = 0; i < count; i++) {
            room.acquire();
            synchronized (this) {
                if (failed > 0) {
                    break;
                }
                sent++;
            }
            long entryId = ids == null ? next++ : ids[i];
            byte[] payload = Payload.of(entryId, size);
            if (ids == null) {
                handle.asyncAddEntry(payload, (rc, lh, id, ctx) -> settled(rc, (Long) ctx), entryId);
            } else {
                ((LedgerHandleAdv) handle).asyncAddEntry(
                        entryId, payload, (rc, lh, id, ctx) -> settled(rc, (Long) ctx), entryId);
            }
        }
        synchronized (this) {
            allSent = true;
            checkEnd();
        }
    }

    private synchronized void settled(int rc, long entryId) {
        if (rc == 0) {
            acknowledged.add(entryId);
        } else {
            if (failed++ == 0) {
                firstFailure = rc;
            }
        }
        room.release();
        checkEnd();
    }

    private void checkEnd() {
        if (allSent && acknowledged.size() + failed == sent) {
            ended.countDown();
        }
    }

    Map<String, Object> await(int timeoutSeconds) throws InterruptedException {
        boolean all = ended.await(timeoutSeconds, TimeUnit.SECONDS);
        synchronized (this) {
            Map<String, Object> answer = new LinkedHashMap<>();
            answer.put("ended", all);
            answer.put("sent", sent);
            answer.put("acked", acknowledged.size());
            answer.put("last_acked", acknowledged.stream().mapToLong(Long::longValue).max().orElse(-1));
            answer.put("failed", failed);
            answer.put("error", failed == 0 ? null : BKException.create(firstFailure).getClass().getSimpleName());
            return answer;
        }
    }
}
