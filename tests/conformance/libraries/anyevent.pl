# perl anyevent.pl URL
use strict;
use warnings;
use AnyEvent;
use AnyEvent::WebSocket::Client;

my $done = AnyEvent->condvar;
my $connection;
AnyEvent::WebSocket::Client->new(max_payload_size => 2**23)->connect($ARGV[0])->cb(sub {
    $connection = eval { shift->recv } or die $@;
    $connection->on(each_message => sub { $done->send($_[1]->body) });
});
print $done->recv, "\n";
