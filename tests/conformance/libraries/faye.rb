# ruby faye.rb URL
require "eventmachine"
require "faye/websocket"

EM.run do
  socket = Faye::WebSocket::Client.new(ARGV[0])
  socket.on(:message) do |event|
    puts event.data
    EM.stop
  end
  socket.on(:close) { EM.stop }
end
