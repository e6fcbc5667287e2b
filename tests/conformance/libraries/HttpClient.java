// java HttpClient.java URL
import java.net.URI;
import java.net.http.WebSocket;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;

public class HttpClient {
    public static void main(String[] arguments) {
        CompletableFuture<String> found = new CompletableFuture<>();
        java.net.http.HttpClient.newHttpClient().newWebSocketBuilder().buildAsync(URI.create(arguments[0]),
            new WebSocket.Listener() {
                final StringBuilder text = new StringBuilder();

                @Override
                public CompletionStage<?> onText(WebSocket socket, CharSequence data, boolean last) {
                    text.append(data);
                    if (last) {
                        found.complete(text.toString());
                    }
                    socket.request(1);
                    return null;
                }
            }).join();
        System.out.println(found.join());
        System.exit(0);
    }
}
