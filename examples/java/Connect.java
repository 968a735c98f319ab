// Connects standard input and output to a service, by hvsock's text protocol (docs/text.md). Java 16 or newer.
//
//   java Connect.java PARTITION SERVICE

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;

public class Connect {
    public static void main(String[] arguments) throws Exception {
        var text = System.getenv().getOrDefault("HVSOCK_DIR", "/run/hvsock") + "/text";
        try (var channel = SocketChannel.open(UnixDomainSocketAddress.of(text))) {
            var request = "CONNECT " + String.join(" ", arguments) + "\n";
            send(channel, StandardCharsets.UTF_8.encode(request));
            var answer = line(channel);
            if (!answer.equals("OK") && !answer.startsWith("OK ")) {
                System.err.println("Connect: " + answer.replaceFirst("^ERR ", ""));
                System.exit(1);
            }
            var sender = new Thread(() -> {
                try {
                    var buffer = new byte[65536];
                    for (int count; (count = System.in.read(buffer)) > 0;) {
                        send(channel, ByteBuffer.wrap(buffer, 0, count));
                    }
                    channel.shutdownOutput();
                } catch (IOException error) {
                    // The reader sees the end as well.
                }
            });
            sender.setDaemon(true);
            sender.start();
            var buffer = ByteBuffer.allocate(65536);
            while (channel.read(buffer) >= 0) {
                System.out.write(buffer.array(), 0, buffer.position());
                buffer.clear();
            }
            System.out.flush();
        }
    }

    private static void send(SocketChannel channel, ByteBuffer bytes) throws IOException {
        while (bytes.hasRemaining()) {
            channel.write(bytes);
        }
    }

    // Byte by byte: what follows the line is data.
    private static String line(SocketChannel channel) throws IOException {
        var line = new ByteArrayOutputStream();
        var one = ByteBuffer.allocate(1);
        while (channel.read(one) > 0) {
            if (one.get(0) == '\n') {
                return line.toString(StandardCharsets.UTF_8);
            }
            line.write(one.get(0));
            one.clear();
        }
        return "ERR reset the broker ended the connection";
    }
}
